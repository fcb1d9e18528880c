-- Takes the controller ARGV[1] off the list KEYS[1], unless it has beaten within ARGV[2] ms. Answers whether it is off.
local t = redis.call('TIME')
local beat = redis.call('ZSCORE', KEYS[1], ARGV[1])
if beat and t[1] * 1000 + math.floor(t[2] / 1000) - beat < tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
