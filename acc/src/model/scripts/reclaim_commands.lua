-- Moves up to ARGV[3] commands that the controller ARGV[1] had taken to another one, unless it has beaten within
-- ARGV[2] ms. KEYS: the last beats, the controllers that are gone, its processing list, the other one's, and on a single
-- server the beats of all versions. ARGV[4] is for how many ms, and ARGV[5] of how many, the gone ones are known.
-- Answers -1 when it lives, else how many were moved; with less than ARGV[3] it has no more, and is gone.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, key in ipairs({KEYS[1], KEYS[5]}) do
  local beat = redis.call('ZSCORE', key, ARGV[1])
  if beat and now - beat < tonumber(ARGV[2]) then return -1 end
end
-- First of all: it may take more before it hears that it is gone, and that is looked for by its name in there.
redis.call('ZADD', KEYS[2], 'NX', string.format('%.0f', now), ARGV[1])
local moved = 0
while moved < tonumber(ARGV[3]) and redis.call('RPOPLPUSH', KEYS[3], KEYS[4]) do moved = moved + 1 end
if moved < tonumber(ARGV[3]) then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - ARGV[4]))
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -ARGV[5] - 1)
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return moved
