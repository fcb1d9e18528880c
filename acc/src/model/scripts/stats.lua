-- Writes series into the hash KEYS[1]; KEYS[2] is the number of the last batch that was written whole.
-- ARGV: most fields, seconds to keep, 1 when the batch was not queued before, its number, 1 when these are the last
-- of it, most fields that are new, then key and '[value,seconds]' of each. When the hash is full, the series that have
-- been silent longest go, of equal ones those that are new: what was known might not come back.
-- Answers how many were new, and how many that would have been were left out.
local written = redis.call('GET', KEYS[2])
if written and tonumber(written) >= tonumber(ARGV[4]) then return {0, 0} end
local function age(text) return tonumber(string.match(text, ',%s*(%-?%d+)%]$') or '0') end
local new, left_out, room, made = 0, 0, tonumber(ARGV[6]), {}
for i = 7, #ARGV, 2 do
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  if not held and new >= room then
    left_out = left_out + 1
  elseif not held or ARGV[3] == '1' or age(held) <= age(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    if not held then
      new = new + 1
      made[ARGV[i]] = true
    end
  end
end
local over = redis.call('HLEN', KEYS[1]) - tonumber(ARGV[1])
if over > 0 then
  local all, ages = redis.call('HGETALL', KEYS[1]), {}
  for i = 1, #all, 2 do
    ages[#ages + 1] = {age(all[i + 1]) * 2 + (made[all[i]] and 0 or 1), all[i]}
  end
  table.sort(ages, function(a, b) return a[1] < b[1] end)
  for i = 1, over do redis.call('HDEL', KEYS[1], ages[i][2]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
if ARGV[5] == '1' then redis.call('SET', KEYS[2], ARGV[4], 'EX', ARGV[2]) end
return {new, left_out}
