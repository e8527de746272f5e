-- Keeps input images that an owner has sent, at least until a given time, unless they exceed a quota.
-- ARGV: time, owner, now, most bytes of the owner or '', most bytes in all or '', then blob key, bytes, ...
-- Returns {'ok', keys that are being deleted} or {'owner' or 'all', bytes stored, time at which images expire or ''}.
-- include: image_quota

local kept_until, owner, now = ARGV[1], ARGV[2], ARGV[3]
local owner_limit, limit = tonumber(ARGV[4]), tonumber(ARGV[5])
-- Images that are looked at for the time at which a quota has room again.
local MOST_LOOKED_AT = 200

local function has_sent(blob)
  return redis.call('ZSCORE', key(keys.INPUT_IMAGE_OWNERS, {key = blob}), owner)
end

local function expires_at(counts)
  local images = redis.call('ZRANGE', keys.INPUT_IMAGES, 0, MOST_LOOKED_AT - 1, 'WITHSCORES')
  for i = 1, #images, 2 do
    if redis.call('HEXISTS', keys.INPUT_IMAGE_USES, images[i]) == 0 and counts(images[i]) then return images[i + 1] end
  end
  return ''
end

local new_to_owner, new_to_all = 0, 0
for i = 6, #ARGV, 2 do
  if not has_sent(ARGV[i]) then new_to_owner = new_to_owner + ARGV[i + 1] end
  if redis.call('HEXISTS', keys.INPUT_IMAGE_SIZES, ARGV[i]) == 0 then new_to_all = new_to_all + ARGV[i + 1] end
end
local used, used_by_all = stored_bytes(owner_field(owner)), stored_bytes(ALL)
if owner_limit and new_to_owner > 0 and used + new_to_owner > owner_limit then
  return {'owner', used, expires_at(has_sent)}
end
if limit and new_to_all > 0 and used_by_all + new_to_all > limit then
  return {'all', used_by_all, expires_at(function() return true end)}
end

local deleting = {}
for i = 6, #ARGV, 2 do
  add_image_owner(ARGV[i], owner, ARGV[i + 1], now)
  redis.call('ZADD', keys.INPUT_IMAGES, 'GT', kept_until, ARGV[i])
  if redis.call('EXISTS', key(keys.INPUT_IMAGE_DELETION, {key = ARGV[i]})) == 1 then
    deleting[#deleting + 1] = ARGV[i]
  end
end
return {'ok', deleting}
