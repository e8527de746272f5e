-- Included by scripts that free memory or end access: they run although Redis has reached `maxmemory`.
-- include: keys

-- A full Redis rejects a write of a script unless the script has written before, and it accepts every deletion.
local function allow_when_full()
  redis.call('DEL', keys.WRITE_PROBE)
end
