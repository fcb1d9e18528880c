-- Remembers for ARGV[1] seconds what was delivered of a recurring job: `remember` of results.lua. KEYS: the hash of what
-- was delivered, the node's last runs. ARGV[2]: Redis or a ticket knows the job (0/1), ARGV[3]: the seconds of a day.
return remember(KEYS[1], KEYS[2], tonumber(ARGV[1]), ARGV[2] == '1', tonumber(ARGV[3]))
