-- Keeps input images that an owner has sent, at least until a given time.
-- ARGV: time, owner, now, blob key, ... Returns the keys that are being deleted.
-- include: keys

local kept_until, owner, now = ARGV[1], ARGV[2], ARGV[3]
local scored, deletions = {}, {}
for i = 4, #ARGV do
  scored[#scored + 1], scored[#scored + 2] = kept_until, ARGV[i]
  deletions[#deletions + 1] = key(keys.INPUT_IMAGE_DELETION, {key = ARGV[i]})
  -- A sorted set needs less memory than a set.
  redis.call('ZADD', key(keys.INPUT_IMAGE_OWNERS, {key = ARGV[i]}), now, owner)
end
redis.call('ZADD', keys.INPUT_IMAGES, 'GT', unpack(scored))

local deleting = {}
if redis.call('EXISTS', unpack(deletions)) > 0 then
  for i, deletion in ipairs(deletions) do
    if redis.call('EXISTS', deletion) == 1 then deleting[#deleting + 1] = ARGV[i + 3] end
  end
end
return deleting
