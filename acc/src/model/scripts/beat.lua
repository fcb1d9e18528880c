-- Says in KEYS[1] that the controller ARGV[1] lives, by Redis' own clock, so that clocks of
-- controllers need not agree. Answers whether it was unknown, and the time. One that was held to be gone
-- is not in KEYS[2] any more, where that is given, and then KEYS[1] is kept for ARGV[2] seconds.
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local new = redis.call('ZADD', KEYS[1], now, ARGV[1])
if KEYS[2] then
  if new == 1 then redis.call('ZREM', KEYS[2], ARGV[1]) end
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return {new, now}
