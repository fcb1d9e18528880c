-- Where the job KEYS[1] stands: all nodes that it was written down for, and those that still have to be handed it.
local all, queued = {}, {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.find(field, '^[1-9]%d*:[1-9]%d*$') then
    all[#all + 1] = field
    -- A result may be long, and this is not.
    if redis.call('HSTRLEN', KEYS[1], field) < 20 and redis.call('HGET', KEYS[1], field) == '{"state":"QUEUED"}' then
      queued[#queued + 1] = field
    end
  end
end
return {all, queued}
