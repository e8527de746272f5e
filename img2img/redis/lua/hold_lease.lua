-- Takes or renews the lease of an execution, by Redis' clock.
-- KEYS: RQ's registry of leases. ARGV: entry of the registry, seconds, 'XX' to renew only. Returns the result of ZADD.

local seconds, microseconds = unpack(redis.call('TIME'))
local ends = string.format('%.6f', seconds + microseconds / 1e6 + ARGV[2])
if ARGV[3] == 'XX' then return redis.call('ZADD', KEYS[1], 'XX', ends, ARGV[1]) end
return redis.call('ZADD', KEYS[1], ends, ARGV[1])
