-- Prolongs the retention of those input images that an owner has sent.
-- ARGV: time until which they are kept, 'all' or 'one', owner, blob key, ... Returns the keys of these images.
-- include: keys

local kept_until, whose, owner = ARGV[1], ARGV[2], ARGV[3]

local function is_usable(blob)
  local owners = key(keys.INPUT_IMAGE_OWNERS, {key = blob})
  if whose == 'all' then return redis.call('EXISTS', owners) == 1 end
  return redis.call('ZSCORE', owners, owner)
end

local usable = {}
for i = 4, #ARGV do
  if is_usable(ARGV[i]) then
    redis.call('ZADD', keys.INPUT_IMAGES, 'GT', kept_until, ARGV[i])
    usable[#usable + 1] = ARGV[i]
  end
end
return usable
