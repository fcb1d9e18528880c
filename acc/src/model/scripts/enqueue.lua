-- Adds commands to a node's queue: `enqueue` of queue.lua, which says what KEYS, ARGV and the answer are.
return enqueue(1, 7, #ARGV)
