-- Lets no further job of a batch be queued. ARGV: id.
-- include: when_full

local record = key(keys.BATCH, {id = ARGV[1]})
-- A record of this field alone would never be deleted.
if redis.call('EXISTS', record) == 1 then
  allow_when_full()
  redis.call('HSET', record, 'stopped', 1)
end
