-- Ends the deletion of an image: it can be stored again.
-- ARGV: blob key, time at which it is due for deletion again because its blob was not deleted, or ''.
-- include: image_quota

local blob, again_at = ARGV[1], ARGV[2]
redis.call('DEL', key(keys.INPUT_IMAGE_DELETION, {key = blob}))
-- It exists already if the deletion has taken too long.
if redis.call('EXISTS', uses_of(blob), uploads_of(blob)) == 1 then return end
if again_at == '' then
  redis.call('ZREM', keys.INPUT_IMAGES, blob)
else
  redis.call('ZADD', keys.INPUT_IMAGES, again_at, blob)
end
