-- Reserves the inputs of a job that will be submitted, unless they exceed a quota. An input that no job needs is deleted
-- after some time.
-- ARGV: time of that deletion, generation of new inputs, owner, most bytes of the owner or '', most bytes in all or '',
--   then blob key, bytes, ...
-- Returns {'ok', for each input its generation, or '' if an earlier copy of it is being deleted}, or as find_exceeded.
-- include: image_quota

local delete_at, new_generation, owner = ARGV[1], ARGV[2], ARGV[3]
local sizes, reply = {}, {'ok'}

local function retain(blob, bytes)
  if redis.call('EXISTS', key(keys.INPUT_IMAGE_DELETION, {key = blob})) == 1 then return '' end
  local uses = uses_of(blob)
  count_image(blob, bytes)
  redis.call('HSETNX', uses, '#', new_generation)
  if redis.call('HLEN', uses) == 1 then redis.call('ZADD', keys.INPUT_IMAGES, 'GT', delete_at, blob) end
  return redis.call('HGET', uses, '#')
end

for i = 6, #ARGV, 2 do sizes[#sizes + 1] = {ARGV[i], tonumber(ARGV[i + 1])} end
local exceeded = find_exceeded(owner, sizes, tonumber(ARGV[4]), tonumber(ARGV[5]))
if exceeded then return exceeded end
for _, image in ipairs(sizes) do reply[#reply + 1] = retain(image[1], image[2]) end
return reply
