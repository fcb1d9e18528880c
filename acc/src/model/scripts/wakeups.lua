-- Takes up to ARGV[1] wake-ups off the list KEYS[1], from its right; the oldest is the last of the answer.
-- RPOP with a count does the same from Redis 6.2 on.
local rings = redis.call('LRANGE', KEYS[1], -ARGV[1], -1)
redis.call('LTRIM', KEYS[1], 0, -ARGV[1] - 1)
return rings
