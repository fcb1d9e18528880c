-- Shared by the scripts of live output, which follow this text.
-- Writes down that the stream `id` takes so many bytes, in the hash of all streams; its field '' is their sum.
local function account(uses, id, bytes)
  local change = bytes - tonumber(redis.call('HGET', uses, id) or '0')
  if change == 0 and redis.call('HEXISTS', uses, id) == 1 then return end
  redis.call('HSET', uses, id, string.format('%.0f', bytes))
  redis.call('HINCRBY', uses, '', string.format('%.0f', change))
  redis.call('EXPIRE', uses, 86400)
end
