-- Ends an owner's upload of an image, or those of all owners. The image is due for deletion after the last one.
-- ARGV: blob key, 'all' or 'one', owner. Returns 1, or 0 if there is no such upload.
-- include: image_quota

local blob, whose, owner = ARGV[1], ARGV[2], ARGV[3]
local removed = 0
for _, one in ipairs(whose == 'all' and redis.call('ZRANGE', uploads_of(blob), 0, -1) or {owner}) do
  if redis.call('ZREM', uploads_of(blob), one) == 1 then
    discount_owner(blob, one)
    removed = removed + 1
  end
end
if removed == 0 then return 0 end
schedule_deletion(blob)
return 1
