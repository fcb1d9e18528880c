-- Adds commands to a node's queue. KEYS: queue, texts, meta, what is there while the node is revoked, and the marks of
-- withdraw.lua. ARGV: this controller, now (ms), most commands that may wait, seconds to keep the keys, most commands
-- and most bytes of one answer, then of each: id, text, and for how many seconds a mark counts, and one that its wait ended.
-- Answers {verdicts, holder, batch, id, text, id, text…}: a verdict is 1 (queued), 0 (waits already, or was withdrawn
-- and has its answer), -1 (no room) or -2 (the node is revoked); the holder is the controller that has the node's poll.
-- When that is this controller, the batch is handed over with the answer.
if redis.call('EXISTS', KEYS[4]) == 1 then
  local none = {}
  for i = 7, #ARGV, 4 do none[#none + 1] = -2 end
  return {none, ''}
end
local verdicts, waiting = {}, redis.call('ZCARD', KEYS[1])
local is_empty = waiting == 0
local meta = redis.call('HMGET', KEYS[3], 'seq', 'ac', 'handed')
local seq, holder = tonumber(meta[1] or '0'), meta[2] or ''
-- Numbers follow the clock, so that they go up even when Redis has lost its data.
local least = tonumber(ARGV[2]) * 1000
if seq < least then seq = least end
-- Whether the command at ARGV[i] was withdrawn so short a time ago that it is the same one, passed on again.
local function withdrawn(i)
  local mark = tonumber(redis.call('ZSCORE', KEYS[5], ARGV[i]) or '0')
  local seconds = mark % 4 == 2 and ARGV[i + 3] or ARGV[i + 2]
  return mark > (tonumber(ARGV[2]) - seconds * 1000) * 4
end
for i = 7, #ARGV, 4 do
  if waiting > 0 and redis.call('ZSCORE', KEYS[1], ARGV[i]) or withdrawn(i) then
    verdicts[#verdicts + 1] = 0
  elseif waiting >= tonumber(ARGV[3]) then
    verdicts[#verdicts + 1] = -1
  else
    seq = seq + 1
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    redis.call('ZADD', KEYS[1], string.format('%.0f', seq), ARGV[i])
    waiting = waiting + 1
    verdicts[#verdicts + 1] = 1
  end
end
seq = string.format('%.0f', seq)
local answer = {verdicts, holder}
local handed = holder == ARGV[1] and waiting > 0
  and hand_over(answer, ARGV[5], ARGV[6], ARGV[2], meta[3], 'seq', seq)
if not handed then redis.call('HSET', KEYS[3], 'seq', seq) end
for i = 1, 3 do
  -- A key that was empty has no expiry yet, but for the texts of commands that were withdrawn.
  if is_empty and i < 3 or redis.call('TTL', KEYS[i]) < tonumber(ARGV[4]) then redis.call('EXPIRE', KEYS[i], ARGV[4]) end
end
return answer
