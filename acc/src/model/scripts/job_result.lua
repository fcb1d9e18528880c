-- The result ARGV[2] of the node ARGV[1], in the hash of the job KEYS[1] when Redis still knows it.
-- With ARGV[4] the node also leaves the list of targets: the controller answered for it.
-- With ARGV[5] it was pushed before, in these words or (by a node that lost power) in others: what its
-- client has stands here too, and only a state that is no answer gives way.
local fields = redis.call('HLEN', KEYS[1])
if fields == 0 then return 0 end
if ARGV[5] == '1' then
  local stands = redis.call('HGET', KEYS[1], ARGV[1])
  if stands and not string.find(stands, '^{"state": ?"[QR]U[A-Z]+"}$') then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if ARGV[4] == '1' then
  local others = {}
  for node in string.gmatch(redis.call('HGET', KEYS[1], 'targets') or '', '"([0-9:]+)"') do
    if node ~= ARGV[1] then others[#others + 1] = '"' .. node .. '"' end
  end
  redis.call('HSET', KEYS[1], 'targets', '[' .. table.concat(others, ',') .. ']')
end
if redis.call('HEXISTS', KEYS[1], 'quiet') == 1 then return 1 end
-- The hash was to live for as long as its command might wait; once nobody is waited for it lives on for
-- a day. Of a large fleet nobody looks: with each answer that would cost too much.
local open = fields > 35
if not open then
  for node in string.gmatch(redis.call('HGET', KEYS[1], 'targets') or '', '"([0-9:]+)"') do
    -- A state that is no result yet is no longer than {"state":"RUNNING"}.
    if redis.call('HSTRLEN', KEYS[1], node) < 20 then open = true end
  end
end
if not open or redis.call('TTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return 1
