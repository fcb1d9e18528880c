-- Says in KEYS[1] that the controller ARGV[1] lives, by Redis' own clock, so that clocks of
-- controllers need not agree. Answers whether it was unknown, and the time.
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
return {redis.call('ZADD', KEYS[1], now, ARGV[1]), now}
