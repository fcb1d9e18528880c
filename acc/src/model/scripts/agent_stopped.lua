-- The agent ARGV[1] (its instance) of the node with the hash KEYS[1] has stopped at ARGV[2] (ms). What an
-- earlier one says late, the controller having been away, is no news of the one that runs.
if redis.call('HGET', KEYS[1], 'instance') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'stopped', ARGV[2])
return 1
