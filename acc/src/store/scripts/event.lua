-- Adds the events ARGV[4…] to the list KEYS[1], which holds at most ARGV[1] entries and ARGV[2] bytes; KEYS[2] has
-- how many there were, for ARGV[3] seconds: then they are counted anew.
push_bounded(KEYS[1], KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2]), 4, #ARGV)
return redis.call('EXPIRE', KEYS[2], ARGV[3])
