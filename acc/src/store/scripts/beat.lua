-- Says in KEYS[1] that the controller ARGV[1] lives, by Redis' own clock, so that clocks of
-- controllers need not agree. Answers whether it was unknown, who has been
-- silent for ARGV[2] ms, and the time.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local new = redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[2]))
return {new, dead, string.format('%.0f', now)}
