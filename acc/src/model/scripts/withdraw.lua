-- Takes a command that still waits out of a node's queue, leaving its text until the answer is
-- delivered, and a mark that it was withdrawn, which enqueue.lua looks at: a controller that passes the command on again
-- must not queue it behind the answer. KEYS: queue, texts, meta, marks. ARGV: id, now (ms), for how many ms a hand-over without
-- an acknowledgement counts as under way, the reason (1 to 3), most marks, seconds to keep them. Commands that were handed to
-- a revoked node (3) are not waited for.
-- A mark's score is 4 times when it was made (ms), plus the reason. The reason that was given first stands.
-- Answers {'gone'}, {'handed', until when (ms)} or {'withdrawn', text, reason}.
local text = redis.call('HGET', KEYS[2], ARGV[1])
if not text then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return {'gone'}
end
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and ARGV[4] ~= '3' then
  local meta = redis.call('HMGET', KEYS[3], 'handed', 'handed_at')
  if meta[1] and tonumber(score) <= tonumber(meta[1]) then
    local till = tonumber(meta[2] or '0') + tonumber(ARGV[3])
    if till > tonumber(ARGV[2]) then return {'handed', string.format('%.0f', till)} end
  end
end
local mark = redis.call('ZSCORE', KEYS[4], ARGV[1])
-- A command that waits was not withdrawn: a mark of it is from a day ago. The mark comes first: a full Redis refuses it.
if score or not mark then
  mark = string.format('%.0f', ARGV[2] * 4 + ARGV[4])
  redis.call('ZADD', KEYS[4], mark, ARGV[1])
  redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -ARGV[5] - 1)
  redis.call('EXPIRE', KEYS[4], ARGV[6])
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return {'withdrawn', text, string.format('%.0f', tonumber(mark) % 4)}
