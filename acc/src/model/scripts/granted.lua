-- Writes down in a node's hash KEYS[1] what is granted of its claims. ARGV: seconds to keep the hash, the claims
-- beyond the grants (JSON, '' for none), its roles (JSON, '' where it has not said which), 1 where the host name is
-- known, the host name ('' for none that is granted), 1 where its labels are known, then name and value of each.
local function put(field, value)
  if value == '' then redis.call('HDEL', KEYS[1], field) else redis.call('HSET', KEYS[1], field, value) end
end
put('claims', ARGV[2])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'roles', ARGV[3]) end
if ARGV[4] == '1' then put('hostname', ARGV[5]) end
if ARGV[6] == '1' then
  local labels = {}
  for i = 7, #ARGV, 2 do labels['label.' .. ARGV[i]] = ARGV[i + 1] end
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 6) == 'label.' and not labels[field] then redis.call('HDEL', KEYS[1], field) end
  end
  for field, value in pairs(labels) do redis.call('HSET', KEYS[1], field, value) end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
