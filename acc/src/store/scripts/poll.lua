-- A node asks for its commands. KEYS: queue, texts, meta. ARGV: this controller, now (ms), the batch
-- that is acknowledged ('' for none), most commands, most bytes, the agent's instance ('' unknown), its
-- address, seconds to keep meta, mode, takeover (1: the other instance is gone).
-- Modes: 'poll' registers this controller as the holder when nothing waits, 'ask' does not,
-- 'fetch' is the holder itself, whose bell has rung.
-- Answers {'empty', holder before}, {'batch', holder before, batch, text…}, {'elsewhere'} (fetch: it
-- is not the holder) or {'displaced', the newer one's address, 1 when that is news}.
local meta = redis.call('HMGET', KEYS[3], 'ac', 'handed', 'instance', 'peer', 'old', 'told')
local holder = meta[1] or ''
if ARGV[9] == 'fetch' and holder ~= ARGV[1] then return {'elsewhere'} end
if ARGV[6] ~= '' and meta[3] ~= ARGV[6] then
  local old = meta[5] or ''
  if meta[3] and ARGV[10] ~= '1' and string.find(',' .. old .. ',', ',' .. ARGV[6] .. ',', 1, true) then
    local news = meta[6] ~= ARGV[6] .. ' ' .. meta[3]
    if news then redis.call('HSET', KEYS[3], 'told', ARGV[6] .. ' ' .. meta[3]) end
    return {'displaced', meta[4] or '', news and 1 or 0}
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
  for i = 1, #ids do redis.call('HDEL', KEYS[2], ids[i]) end
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', upto)
end
local answer = {'batch', holder, '0'}
local ids = redis.call('ZRANGE', KEYS[1], 0, ARGV[4] - 1, 'WITHSCORES')
local bytes, last = 0, '0'
for i = 1, #ids, 2 do
  local text = redis.call('HGET', KEYS[2], ids[i])
  if text then
    if #answer > 3 and bytes + #text > tonumber(ARGV[5]) then break end
    bytes = bytes + #text
    answer[#answer + 1] = text
    last = ids[i + 1]
  else
    redis.call('ZREM', KEYS[1], ids[i])
  end
end
if #answer == 3 then
  answer = {'empty', holder}
  if ARGV[9] == 'poll' then redis.call('HSET', KEYS[3], 'ac', ARGV[1]) end
else
  answer[3] = string.format('%.0f', tonumber(last))
  if not meta[2] or tonumber(last) > tonumber(meta[2]) then
    redis.call('HSET', KEYS[3], 'handed', answer[3])
  end
  redis.call('HSET', KEYS[3], 'handed_at', ARGV[2])
  redis.call('HDEL', KEYS[3], 'ac')
end
if redis.call('TTL', KEYS[3]) < ARGV[8] / 2 then redis.call('EXPIRE', KEYS[3], ARGV[8]) end
return answer
