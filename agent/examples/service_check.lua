-- Services: are these processes there, and does somebody listen on these ports?
--
--   jsctl script run 1.10 ./service_check.lua --data '{"processes": ["sshd"], "ports": [22]}'
--
-- Data: `processes` (names as in /proc/<pid>/comm), `ports` (TCP), `units` (systemd), all optional.
-- Result: {ok, missing = [...]}. Status 1 and a critical message when something is missing.

-- The lines that a command writes.
local function lines(command)
  local pipe = assert(io.popen(command))
  local out = {}
  for line in pipe:lines() do out[#out + 1] = line end
  pipe:close()
  return out
end

local function processes()
  local names = {}
  for _, name in ipairs(lines("cat /proc/[0-9]*/comm 2>/dev/null")) do names[name] = true end
  return names
end

-- Ports with a listener, from the kernel's own tables.
local function listeners()
  local ports = {}
  for _, file in ipairs { "/proc/net/tcp", "/proc/net/tcp6" } do
    -- A node without IPv6 has one of them.
    local table = io.open(file)
    for line in table and table:lines() or function() end do
      local port, state = line:match("^%s*%d+: %x+:(%x+) %x+:%x+ (%x+)")
      if state == "0A" then ports[tonumber(port, 16)] = true end
    end
    if table then table:close() end
  end
  return ports
end

function action(data)
  local missing = json.array()
  local function check(what, good)
    if not good then missing[#missing + 1] = what end
  end
  local running, open = processes(), listeners()
  for _, name in ipairs(data.processes or {}) do
    -- The kernel keeps 15 characters of a name.
    check("process " .. name, running[name:sub(1, 15)])
  end
  for _, port in ipairs(data.ports or {}) do check("port " .. port, open[port]) end
  for _, unit in ipairs(data.units or {}) do
    local quoted = "'" .. unit:gsub("'", "'\\''") .. "'"
    check("unit " .. unit, lines("systemctl is-active " .. quoted .. " 2>/dev/null")[1] == "active")
  end
  stat("missing", #missing)
  result { ok = #missing == 0, missing = missing }
  if #missing > 0 then
    log(9, "missing: " .. table.concat(missing, ", "))
    os.exit(1, true)
  end
end
