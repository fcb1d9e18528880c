-- Takes a command that still waits out of a node's queue, leaving its text until the answer is
-- delivered. KEYS: queue, texts, meta. ARGV: id, now (ms), for how many ms a hand-over without an
-- acknowledgement counts as under way.
-- Answers {'gone'}, {'handed', until when (ms)} or {'withdrawn', text}.
local text = redis.call('HGET', KEYS[2], ARGV[1])
if not text then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return {'gone'}
end
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score then
  local meta = redis.call('HMGET', KEYS[3], 'handed', 'handed_at')
  if meta[1] and tonumber(score) <= tonumber(meta[1]) then
    local till = tonumber(meta[2] or '0') + tonumber(ARGV[3])
    if till > tonumber(ARGV[2]) then return {'handed', string.format('%.0f', till)} end
  end
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return {'withdrawn', text}
