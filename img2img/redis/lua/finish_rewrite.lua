-- Subtracts the deletions before a rewrite of the append-only file. ARGV: their number.
-- include: when_full

allow_when_full()
if redis.call('DECRBY', keys.ERASURES, ARGV[1]) <= 0 then redis.call('DEL', keys.ERASURES) end
