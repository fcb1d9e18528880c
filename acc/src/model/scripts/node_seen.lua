-- The node with the hash KEYS[1] polled at ARGV[1] (ms) at the controller ARGV[2]; its hash is kept for
-- ARGV[3] seconds from now. A poll that is told late is no news of a node that was seen since.
if (tonumber(redis.call('HGET', KEYS[1], 'last_seen')) or 0) < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'last_seen', ARGV[1], 'ac', ARGV[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
