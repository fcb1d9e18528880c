-- Forgets the streams ARGV[1…] in KEYS[1], and counts anew what the others take. Answers how many there are, and the sum.
for i = 1, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
local fields, sum, count = redis.call('HGETALL', KEYS[1]), 0, 0
for i = 1, #fields, 2 do
  if fields[i] ~= '' then
    sum = sum + tonumber(fields[i + 1])
    count = count + 1
  end
end
if count == 0 then redis.call('DEL', KEYS[1]) else redis.call('HSET', KEYS[1], '', string.format('%.0f', sum)) end
return {count, sum}
