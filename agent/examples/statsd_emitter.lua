-- Figures of the node as statsd: load, memory, network.
--
--   jsctl script run 1.10 ./statsd_emitter.lua --every 30
--
-- Data: `interfaces` (a list of names; default: all but lo). They become series of the job, and go to
-- the controller with everything else that is measured. No result: a recurring job stays quiet.

local function text(path)
  local file = assert(io.open(path))
  local all = file:read("a")
  file:close()
  return all
end

function action(data)
  local one, five, fifteen, running = text("/proc/loadavg"):match("(%S+) (%S+) (%S+) (%d+)/")
  stat("load.1", tonumber(one))
  stat("load.5", tonumber(five))
  stat("load.15", tonumber(fifteen))
  stat("running", tonumber(running))

  local memory = {}
  for key, kib in text("/proc/meminfo"):gmatch("(%w+):%s+(%d+) kB") do memory[key] = tonumber(kib) * 1024 end
  stat("memory.total", memory.MemTotal)
  stat("memory.available", memory.MemAvailable)
  stat("swap.used", memory.SwapTotal - memory.SwapFree)

  local wanted
  for _, name in ipairs(data.interfaces or {}) do
    wanted = wanted or {}
    wanted[name] = true
  end
  for name, counters in text("/proc/net/dev"):gmatch("(%S+):([^\n]*)") do
    if wanted and wanted[name] or not wanted and name ~= "lo" then
      local n = {}
      for number in counters:gmatch("%d+") do n[#n + 1] = tonumber(number) end
      -- Gauges of counters: their growth is the rate, whoever draws them.
      stat("net." .. name .. ".rx", n[1])
      stat("net." .. name .. ".tx", n[9])
    end
  end
end
