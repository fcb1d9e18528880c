-- Writes a result into the hash of its job: `write_result` of results.lua. KEYS: the hash. ARGV: node, text, seconds to
-- keep it while others are waited for, and once nobody is, withdrawn (0/1), repeated (0/1).
local fields, quiet = redis.call('HLEN', KEYS[1]), redis.call('HEXISTS', KEYS[1], 'quiet') == 1
return write_result(KEYS[1], fields, quiet, ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1',
  ARGV[6] == '1')
