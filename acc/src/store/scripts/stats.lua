-- Writes series into the hash KEYS[1]. ARGV: most fields, seconds to keep, 1 when the batch is new, then
-- key and '[value,seconds]' of each. When it gets too full, the series that have been silent longest go.
local function age(text) return tonumber(string.match(text, ',%s*(%-?%d+)%]$') or '0') end
for i = 4, #ARGV, 2 do
  local held = ARGV[3] ~= '1' and redis.call('HGET', KEYS[1], ARGV[i])
  if not held or age(held) <= age(ARGV[i + 1]) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
local most = tonumber(ARGV[1])
if redis.call('HLEN', KEYS[1]) > most then
  local all, ages = redis.call('HGETALL', KEYS[1]), {}
  for i = 1, #all, 2 do
    ages[#ages + 1] = {age(all[i + 1]), all[i]}
  end
  table.sort(ages, function(a, b) return a[1] < b[1] end)
  for i = 1, #ages - math.floor(most * 0.9) do redis.call('HDEL', KEYS[1], ages[i][2]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
