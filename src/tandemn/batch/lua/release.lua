-- ARGV: epoch, chunk, sequence.
local fault = fault_of(ARGV[1], ARGV[2], ARGV[3])
if fault then return fault end
give_back({ARGV[2]})
return 0
