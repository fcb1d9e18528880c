-- Shared by the scripts that put commands into a node's queue, which follow this text; handover.lua stands in front.
-- KEYS from `key` on: queue, texts, meta, what is there while the node is revoked, and the marks of withdraw.lua. ARGV
-- begins with: this controller, now (ms), most commands that may wait, seconds to keep the keys, most commands and most
-- bytes of one answer. From `first` to `last` it has of each command: id, text, and for how many seconds a mark counts,
-- and one that its wait ended.
-- Answers {verdicts, holder, batch, id, text, id, text…}: a verdict is 1 (queued), 0 (waits already, or was withdrawn
-- and has its answer), -1 (no room) or -2 (the node is revoked); the holder is the controller that has the node's poll.
-- When that is this controller, the batch is handed over with the answer.
local function enqueue(key, first, last)
  local queue, texts, meta, marks = KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 4]
  if redis.call('EXISTS', KEYS[key + 3]) == 1 then
    local none = {}
    for i = first, last, 4 do none[#none + 1] = -2 end
    return {none, ''}
  end
  local verdicts, waiting = {}, redis.call('ZCARD', queue)
  local is_empty = waiting == 0
  local known = redis.call('HMGET', meta, 'seq', 'ac', 'handed')
  local seq, holder = tonumber(known[1] or '0'), known[2] or ''
  -- Numbers follow the clock, so that they go up even when Redis has lost its data.
  local least = tonumber(ARGV[2]) * 1000
  if seq < least then seq = least end
  -- Whether the command at ARGV[i] was withdrawn so short a time ago that it is the same one, passed on again.
  local function withdrawn(i)
    local mark = tonumber(redis.call('ZSCORE', marks, ARGV[i]) or '0')
    local seconds = mark % 4 == 2 and ARGV[i + 3] or ARGV[i + 2]
    return mark > (tonumber(ARGV[2]) - seconds * 1000) * 4
  end
  for i = first, last, 4 do
    if waiting > 0 and redis.call('ZSCORE', queue, ARGV[i]) or withdrawn(i) then
      verdicts[#verdicts + 1] = 0
    elseif waiting >= tonumber(ARGV[3]) then
      verdicts[#verdicts + 1] = -1
    else
      seq = seq + 1
      redis.call('HSET', texts, ARGV[i], ARGV[i + 1])
      redis.call('ZADD', queue, string.format('%.0f', seq), ARGV[i])
      waiting = waiting + 1
      verdicts[#verdicts + 1] = 1
    end
  end
  seq = string.format('%.0f', seq)
  local answer = {verdicts, holder}
  local handed = holder == ARGV[1] and waiting > 0
    and hand_over(queue, texts, meta, answer, ARGV[5], ARGV[6], ARGV[2], known[3], 'seq', seq)
  if not handed then redis.call('HSET', meta, 'seq', seq) end
  for i = key, key + 2 do
    -- A key that was empty has no expiry yet, but for the texts of commands that were withdrawn.
    if is_empty and i < key + 2 or redis.call('TTL', KEYS[i]) < tonumber(ARGV[4]) then
      redis.call('EXPIRE', KEYS[i], ARGV[4])
    end
  end
  return answer
end
