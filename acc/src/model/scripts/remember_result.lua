-- Remembers for ARGV[1] seconds what was delivered of a recurring job, for its next run may be far away.
-- KEYS: the hash of what was delivered, the key of the run. When Redis does not know the job any more (ARGV[2]
-- is 0), that is only gone on with: what is kept for more than ARGV[3] seconds was so at a run of a job that
-- Redis did know.
if ARGV[2] == '0' and redis.call('TTL', KEYS[1]) <= tonumber(ARGV[3]) then return 0 end
for i = 1, 2 do
  if redis.call('TTL', KEYS[i]) < tonumber(ARGV[1]) then redis.call('EXPIRE', KEYS[i], ARGV[1]) end
end
return 1
