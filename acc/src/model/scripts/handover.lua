-- Shared by the scripts that hand commands over, which follow this text.
-- The oldest commands of a node's queue that fit into one answer.
-- Adds the name of the batch, and id and text of each, to `answer`, and writes down that they were handed over at
-- `now` (ms), with the other fields and values, and that nobody holds the poll any more. `before` is the batch that was
-- handed over last. Answers whether there was anything.
local function hand_over(queue, texts, meta, answer, most, most_bytes, now, before, ...)
  local ids = redis.call('ZRANGE', queue, 0, tonumber(most) - 1, 'WITHSCORES')
  local name, bytes, last = #answer + 1, 0, nil
  answer[name] = '0'
  for i = 1, #ids, 2 do
    local text = redis.call('HGET', texts, ids[i])
    if text then
      if last and bytes + #text > tonumber(most_bytes) then break end
      bytes = bytes + #text
      answer[#answer + 1] = ids[i]
      answer[#answer + 1] = text
      last = ids[i + 1]
    else
      redis.call('ZREM', queue, ids[i])
    end
  end
  if not last then
    answer[name] = nil
    return false
  end
  answer[name] = string.format('%.0f', tonumber(last))
  -- Commands that were handed over before, and are here still, can be acknowledged still.
  local handed = answer[name]
  if before and tonumber(before) > tonumber(last) then handed = before end
  redis.call('HSET', meta, 'handed', handed, 'handed_at', now, ...)
  redis.call('HDEL', meta, 'ac')
  return true
end
