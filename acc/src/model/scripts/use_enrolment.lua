-- Counts one use of the enrolment token KEYS[1], at most ARGV[1], at ARGV[3] (ms); forgotten after ARGV[2] seconds.
-- KEYS[2] names this one use, so that one that is asked for again, its answer having been lost, counts once.
-- Answers when it was counted (ms), or nothing where no use is left.
local at = redis.call('GET', KEYS[2])
if at then return at end
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used >= tonumber(ARGV[1]) then return false end
redis.call('SET', KEYS[1], used + 1, 'EX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
return ARGV[3]
