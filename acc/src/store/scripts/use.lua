-- Counts one use of the enrolment token KEYS[1], at most ARGV[1]; forgotten after ARGV[2] seconds.
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], used + 1, 'EX', ARGV[2])
return 1
