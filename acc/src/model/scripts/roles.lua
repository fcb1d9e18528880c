-- Writes down the roles ARGV[2] (JSON) of the node ARGV[1] in KEYS[1]; KEYS[2] counts the changes.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  return redis.call('INCR', KEYS[2])
end
return 0
