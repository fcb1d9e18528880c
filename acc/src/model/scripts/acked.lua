-- The ids that an acknowledgement of batch ARGV[1] covers. KEYS: queue, meta. A command that was never handed
-- over cannot be acknowledged.
local handed = redis.call('HGET', KEYS[2], 'handed')
if not handed then return {} end
local upto = math.min(tonumber(handed), tonumber(ARGV[1]))
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', upto))
