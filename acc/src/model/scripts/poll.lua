-- A node asks for its commands. KEYS: queue, texts, meta. ARGV: this controller, now (ms), the batch
-- that is acknowledged ('' for none), most commands, most bytes, the agent's instance ('' unknown), its
-- address, seconds to keep meta, mode, takeover (1: the other instance is gone), the controller that
-- was told that the node is here ('' none).
-- Modes: 'poll' registers this controller as the holder when nothing waits, 'ask' does not,
-- 'fetch' is the holder itself, which was woken.
-- Answers {'empty'}, {'batch', batch, id, text…}, {'elsewhere', holder} (fetch: it is another one, or '' for
-- none), {'moved', holder} (that one has to be told first, for it trusts that it holds the poll) or
-- {'displaced', the newer one's address, what to write down as told when that is news, or ''}: once a minute at most.
local meta = redis.call('HMGET', KEYS[3], 'ac', 'handed', 'instance', 'peer', 'old', 'told', 'told_at')
local holder = meta[1] or ''
if ARGV[9] == 'fetch' and holder ~= ARGV[1] then return {'elsewhere', holder} end
if ARGV[6] ~= '' and meta[3] ~= ARGV[6] then
  local old = meta[5] or ''
  if meta[3] and ARGV[10] ~= '1' and string.find(',' .. old .. ',', ',' .. ARGV[6] .. ',', 1, true) then
    local word = ARGV[6] .. ' ' .. meta[3]
    local tell = meta[6] ~= word and tonumber(ARGV[2]) - tonumber(meta[7] or '0') >= 60000
    if tell then redis.call('HSET', KEYS[3], 'told_at', ARGV[2]) end
    return {'displaced', meta[4] or '', tell and word or ''}
  end
  -- The newest instance holds the identity; the few before it are remembered, to tell them so.
  local names = {}
  if meta[3] then names[1] = meta[3] end
  for name in string.gmatch(old, '[^,]+') do
    if name ~= ARGV[6] and #names < 4 then names[#names + 1] = name end
  end
  redis.call('HSET', KEYS[3], 'instance', ARGV[6], 'old', table.concat(names, ','))
end
if ARGV[6] ~= '' and meta[4] ~= ARGV[7] then redis.call('HSET', KEYS[3], 'peer', ARGV[7]) end
if ARGV[3] ~= '' and meta[2] then
  local upto = string.format('%.0f', math.min(tonumber(meta[2]), tonumber(ARGV[3])))
  local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', upto)
  -- First a write that a full Redis refuses, as it has refused then to write down that they run.
  if #ids > 0 then redis.call('HSET', KEYS[3], 'acked', upto) end
  for i = 1, #ids do redis.call('HDEL', KEYS[2], ids[i]) end
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', upto)
end
local others = holder ~= '' and holder ~= ARGV[1] and holder ~= ARGV[11]
if others and (ARGV[9] == 'poll' or redis.call('ZCARD', KEYS[1]) > 0) then return {'moved', holder} end
local answer = {'batch'}
if not hand_over(KEYS[1], KEYS[2], KEYS[3], answer, ARGV[4], ARGV[5], ARGV[2], meta[2]) then
  answer = {'empty'}
  if ARGV[9] == 'poll' and holder ~= ARGV[1] then redis.call('HSET', KEYS[3], 'ac', ARGV[1]) end
end
if redis.call('TTL', KEYS[3]) < ARGV[8] / 2 then redis.call('EXPIRE', KEYS[3], ARGV[8]) end
return answer
