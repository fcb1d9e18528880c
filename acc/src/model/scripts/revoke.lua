-- Writes down in KEYS[1] that what the node ARGV[1] was issued up to ARGV[2] (ms) holds no more; KEYS[2] counts
-- the changes, for controllers to see that there is one.
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return redis.call('INCR', KEYS[2])
