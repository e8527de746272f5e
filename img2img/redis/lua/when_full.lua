-- Included by scripts for deletion, cancellation and revocation: they run although Redis has reached `maxmemory`.
-- include: keys

-- A full Redis accepts every deletion, and all writes of a script after one.
local function allow_when_full()
  redis.call('DEL', keys.WRITE_PROBE)
end
