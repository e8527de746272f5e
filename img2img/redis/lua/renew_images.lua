-- Finds the images that an owner can refer to, and prolongs the retention of those that were uploaded.
-- ARGV: time until which they are kept, now, 'all' or 'one', owner, blob key, ... Returns the keys of these images.
-- include: image_quota

local kept_until, now, whose, owner = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

-- The input of a job is kept as long as the job.
local function is_input(blob)
  if whose == 'all' then return count_users(blob) > 0 end
  return redis.call('HEXISTS', uses_of(blob), owner) == 1
end

local function renew_upload(blob)
  local owners = uploads_of(blob)
  local renewed = false
  for _, one in ipairs(whose == 'all' and redis.call('ZRANGE', owners, 0, -1) or {owner}) do
    if tonumber(redis.call('ZSCORE', owners, one) or 0) > now then
      redis.call('ZADD', owners, 'GT', kept_until, one)
      renewed = true
    end
  end
  if renewed then schedule_deletion(blob) end
  return renewed
end

local usable = {}
for i = 5, #ARGV do
  if is_input(ARGV[i]) or renew_upload(ARGV[i]) then usable[#usable + 1] = ARGV[i] end
end
return usable
