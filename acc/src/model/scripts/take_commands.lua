-- Takes up to ARGV[1] more commands off the queue KEYS[1] into the processing list KEYS[2], oldest first.
local taken = {}
for i = 1, tonumber(ARGV[1]) do
  local text = redis.call('RPOPLPUSH', KEYS[1], KEYS[2])
  if not text then break end
  taken[i] = text
end
return taken
