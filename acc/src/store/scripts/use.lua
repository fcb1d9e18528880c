-- Counts one use of the enrolment token KEYS[1], at most ARGV[1]; forgotten after ARGV[2] seconds. KEYS[2] names
-- this one use, so that a call that is sent again after a cut connection counts once.
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], used + 1, 'EX', ARGV[2])
redis.call('SET', KEYS[2], '1', 'EX', 60)
return 1
