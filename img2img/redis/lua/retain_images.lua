-- Keeps input images that an owner has sent, at least until a given time.
-- ARGV: time, owner, now, blob key, ... Returns the keys that are being deleted.
-- include: keys

local kept_until, owner, now = ARGV[1], ARGV[2], ARGV[3]
local deleting = {}
for i = 4, #ARGV do
  redis.call('ZADD', keys.INPUT_IMAGES, 'GT', kept_until, ARGV[i])
  -- A sorted set needs less memory than a set.
  redis.call('ZADD', key(keys.INPUT_IMAGE_OWNERS, {key = ARGV[i]}), now, owner)
  if redis.call('EXISTS', key(keys.INPUT_IMAGE_DELETION, {key = ARGV[i]})) == 1 then
    deleting[#deleting + 1] = ARGV[i]
  end
end
return deleting
