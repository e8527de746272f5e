-- Included by other scripts: the owners of input images, and how many bytes each owner has stored. The owners of an image
-- have uploaded it, or have jobs that need it. It counts once for each owner, and once in the total.
-- include: keys

local ALL = 'all'
-- Images, and jobs, that are looked at for the time at which a quota has room again.
local MOST_LOOKED_AT = 200

local function uses_of(blob)
  return key(keys.INPUT_IMAGE_USES, {key = blob})
end

local function uploads_of(blob)
  return key(keys.UPLOAD_OWNERS, {key = blob})
end

-- The number of owners with jobs that need the image.
local function count_users(blob)
  local uses = uses_of(blob)
  return redis.call('HLEN', uses) - redis.call('HEXISTS', uses, '#')
end

local function is_owner(blob, owner)
  if redis.call('HEXISTS', uses_of(blob), owner) == 1 then return true end
  return redis.call('ZSCORE', uploads_of(blob), owner) ~= false
end

local function owners_of(blob)
  local owners = redis.call('ZRANGE', uploads_of(blob), 0, -1)
  for _, owner in ipairs(redis.call('HKEYS', uses_of(blob))) do
    if owner ~= '#' and not redis.call('ZSCORE', uploads_of(blob), owner) then owners[#owners + 1] = owner end
  end
  return owners
end

local function owner_field(owner)
  return 'of:' .. owner
end

local function stored_bytes(field)
  return tonumber(redis.call('HGET', keys.STORED_BYTES, field) or 0)
end

local function image_bytes(blob)
  return tonumber(redis.call('HGET', keys.INPUT_IMAGE_SIZES, blob) or 0)
end

local function add_bytes(field, bytes)
  -- Redis does not read -0.
  if bytes == 0 then return end
  if redis.call('HINCRBY', keys.STORED_BYTES, field, bytes) <= 0 then redis.call('HDEL', keys.STORED_BYTES, field) end
end

-- Counts an image that is about to be stored. It can have owners from before the sizes of images were recorded.
local function count_image(blob, bytes)
  if redis.call('HSETNX', keys.INPUT_IMAGE_SIZES, blob, bytes) == 0 then return end
  add_bytes(ALL, bytes)
  for _, owner in ipairs(owners_of(blob)) do add_bytes(owner_field(owner), bytes) end
end

-- Call this before an owner uploads the image, or submits a job that needs it.
local function count_owner(blob, owner)
  if not is_owner(blob, owner) then add_bytes(owner_field(owner), image_bytes(blob)) end
end

-- Call this after an owner's upload, or the last of its jobs that need the image, is removed.
local function discount_owner(blob, owner)
  if not is_owner(blob, owner) then add_bytes(owner_field(owner), -image_bytes(blob)) end
end

-- Forgets an image that no owner has any more.
local function discount_image(blob)
  add_bytes(ALL, -image_bytes(blob))
  redis.call('HDEL', keys.INPUT_IMAGE_SIZES, blob)
end

-- Lists an image by the time at which its first upload ends, or as due for deletion if there is none.
local function schedule_deletion(blob)
  local first = redis.call('ZRANGE', uploads_of(blob), 0, 0, 'WITHSCORES')
  redis.call('ZADD', keys.INPUT_IMAGES, first[2] or 0, blob)
end

-- Returns the time at which an image of an owner, or of any owner, is deleted; '' if unknown.
local function frees_at(owner)
  local earliest = math.huge

  local images = redis.call('ZRANGE', keys.INPUT_IMAGES, 0, MOST_LOOKED_AT - 1, 'WITHSCORES')
  for i = 1, #images, 2 do
    local blob, time = images[i], images[i + 1]
    if owner then
      time = redis.call('ZSCORE', uploads_of(blob), owner)
    else
      time = redis.call('ZRANGE', uploads_of(blob), -1, -1, 'WITHSCORES')[2] or time
    end
    if time and count_users(blob) == 0 then earliest = math.min(earliest, tonumber(time)) end
  end

  -- Whether the job is the last one that needs an image.
  local function frees_image(inputs, of)
    for blob in string.gmatch(inputs, '%S+') do
      if redis.call('HGET', uses_of(blob), of) == '1' and (owner or count_users(blob) == 1) then return true end
    end
    return false
  end

  local jobs = redis.call('ZRANGE', keys.EXPIRING_JOBS, 0, MOST_LOOKED_AT - 1, 'WITHSCORES')
  for i = 1, #jobs, 2 do
    local of, inputs = unpack(redis.call('HMGET', key(keys.JOB, {id = jobs[i]}), 'owner', 'inputs'))
    of = of or ''
    if inputs and (not owner or of == owner) and frees_image(inputs, of) then
      earliest = math.min(earliest, tonumber(jobs[i + 1]))
      break
    end
  end
  return earliest < math.huge and string.format('%.6f', earliest) or ''
end

-- Returns nil if an owner may store images, else {'owner' or 'all', bytes stored, time at which there is room or ''}.
-- sizes: {{blob key, bytes}, ...}; limits: nil is none.
local function find_exceeded(owner, sizes, owner_limit, limit)
  local new_to_owner, new_to_all = 0, 0
  for _, image in ipairs(sizes) do
    if not is_owner(image[1], owner) then new_to_owner = new_to_owner + image[2] end
    if redis.call('HEXISTS', keys.INPUT_IMAGE_SIZES, image[1]) == 0 then new_to_all = new_to_all + image[2] end
  end
  local used, used_by_all = stored_bytes(owner_field(owner)), stored_bytes(ALL)
  if owner_limit and new_to_owner > 0 and used + new_to_owner > owner_limit then return {'owner', used, frees_at(owner)} end
  if limit and new_to_all > 0 and used_by_all + new_to_all > limit then return {'all', used_by_all, frees_at()} end
  return nil
end
