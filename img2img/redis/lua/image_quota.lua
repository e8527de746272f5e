-- Included by other scripts: who has sent an input image, and how many bytes each owner has stored. An image counts once
-- for each owner who has sent it, and once in the total.
-- include: keys

local ALL = 'all'

local function owner_field(owner)
  return 'of:' .. owner
end

local function stored_bytes(field)
  return tonumber(redis.call('HGET', keys.STORED_BYTES, field) or 0)
end

local function add_bytes(field, bytes)
  if redis.call('HINCRBY', keys.STORED_BYTES, field, bytes) <= 0 then redis.call('HDEL', keys.STORED_BYTES, field) end
end

local function add_image_owner(blob, owner, bytes, now)
  if redis.call('HSETNX', keys.INPUT_IMAGE_SIZES, blob, bytes) == 1 then add_bytes(ALL, bytes) end
  -- A sorted set needs less memory than a set.
  if redis.call('ZADD', key(keys.INPUT_IMAGE_OWNERS, {key = blob}), now, owner) == 1 then
    add_bytes(owner_field(owner), bytes)
  end
end

local function image_bytes(blob)
  return tonumber(redis.call('HGET', keys.INPUT_IMAGE_SIZES, blob) or 0)
end

-- Forgets who has sent an image that is about to be deleted.
local function remove_image_owners(blob)
  local owners, bytes = key(keys.INPUT_IMAGE_OWNERS, {key = blob}), image_bytes(blob)
  for _, owner in ipairs(redis.call('ZRANGE', owners, 0, -1)) do add_bytes(owner_field(owner), -bytes) end
  redis.call('DEL', owners)
  if redis.call('HDEL', keys.INPUT_IMAGE_SIZES, blob) == 1 then add_bytes(ALL, -bytes) end
end
