-- Ends the deletion of an input image, unless the image was sent again since it was claimed.
-- ARGV: blob key, time at which to claim the image again or '' if its blob is deleted.
-- include: keys

local blob, again_at = ARGV[1], ARGV[2]
redis.call('DEL', key(keys.INPUT_IMAGE_DELETION, {key = blob}))
if redis.call('EXISTS', key(keys.INPUT_IMAGE_OWNERS, {key = blob})) == 1 then return end
if again_at == '' then
  redis.call('ZREM', keys.INPUT_IMAGES, blob)
else
  redis.call('ZADD', keys.INPUT_IMAGES, again_at, blob)
end
