-- Runs one script, in the built-in Lua and in an interpreter of the node's own (5.1 and later, LuaJIT).
-- Called with the script's source, its path, its name for messages, its own arguments and the source
-- of the JSON module; what is left on stdin is the script's. Returns whether all went well.
local source, path, label, words, json_source = ...

local load = loadstring or load

-- The working folder may be writable by others, so modules are found by absolute paths alone.
for _, key in ipairs({ "path", "cpath" }) do
  local kept = {}
  for place in (package[key] or ""):gmatch("[^;]+") do
    if place:find("^[/\\]") or (package.config:sub(1, 1) == "\\" and place:find("^%a:[/\\]")) then
      kept[#kept + 1] = place
    end
  end
  package[key] = table.concat(kept, ";")
end
local MOST = 1048576

-- The JSON module is loaded when somebody looks into it: most scripts have no need for it, and
-- loading it costs each of their starts.
local json = setmetatable({}, {
  __index = function(module, key)
    setmetatable(module, nil)
    for name, value in pairs(load(json_source, "=json")()) do module[name] = value end
    return module[key]
  end,
})
local stdout, exit = io.stdout, os.exit

-- By lines, so that a message is there when it was written, and a script that is killed loses none.
stdout:setvbuf("line")

-- Whether a message that follows would begin a line. C's files do not tell, so each writer does.
local fresh = true
local methods = getmetatable(stdout).__index
local print_to, write_to = print, methods.write

local function note(...)
  local last = select(select("#", ...), ...)
  if type(last) == "string" then
    if last ~= "" then fresh = last:byte(-1) == 10 end
  elseif last ~= nil then
    fresh = false
  end
end

function print(...)
  fresh = true
  return print_to(...)
end

function methods.write(file, ...)
  if file == stdout then note(...) end
  return write_to(file, ...)
end

function io.write(...)
  local file = io.output()
  if file == stdout then note(...) end
  return write_to(file, ...)
end

local function emit(level, text)
  local start = fresh and "" or "\n"
  fresh = true
  if text:find("\n", 1, true) or text:sub(1, 1) == ":" then
    -- A line of the text must not end the block.
    text = ("\n" .. text):gsub("\n:::", "\n :::")
    write_to(stdout, start, ("%d:::"):format(level), text, "\n:::\n")
  else
    write_to(stdout, start, ("%d::"):format(level), text, "\n")
  end
  stdout:flush()
end

--- Writes a message of this level: 1-11, or 20-23 for a result.
function log(level, text)
  local n = type(level) == "number" and level % 1 == 0 and level or 0
  if not (n >= 1 and n <= 11 or n >= 20 and n <= 23) then
    error("log: the level is 1-11 or 20-23, not " .. tostring(level), 2)
  end
  emit(n, tostring(text))
end

local kinds = { c = true, g = true, ms = true, h = true, s = true, kv = true }

--- Adds to the node's figures: kind is c, g, ms, h, s or kv.
function stat(key, value, kind)
  key, kind = tostring(key), kind or "g"
  if not kinds[kind] then error("stat: the type is c, g, ms, h, s or kv, not " .. tostring(kind), 2) end
  if key == "" or key:find("[:|\r\n]") then
    error("stat: a key is not empty and has no ':', '|' or line end, not " .. ("%q"):format(key), 2)
  end
  local number = type(value) == "number"
  local text = tostring(value)
  if value == nil or text == "" or text:find("[|\r\n]") or number and (value ~= value or value - value ~= 0) then
    error("stat: " .. text .. " is no value", 2)
  end
  local line = ("%s:%s|%s"):format(key, text, kind)
  -- A sign makes a gauge change by that much, so a number below 0 is a change from 0.
  if kind == "g" and number and text:sub(1, 1) == "-" then line = key .. ":0|g\n" .. line end
  emit(10, line)
end

local formats = { json = 20, yaml = 21, toml = 22, hrd = 23 }

--- Writes the script's result; what is no text is written as JSON, which is YAML too.
function result(value, format)
  format = format == nil and "json" or format
  local level = formats[tostring(format):lower()]
  if not level then error("result: the format is json, yaml, toml or hrd, not " .. tostring(format), 2) end
  local text = value
  if level == 20 or level == 21 and type(value) ~= "string" then
    local good
    good, text = pcall(json.encode, value)
    if not good then error("result: " .. text, 2) end
  elseif type(value) ~= "string" then
    error(("result: give %s as text, not as a %s"):format(format, type(value)), 2)
  end
  if #text > MOST then
    error(("result: %d bytes are too many; the most is %d"):format(#text, MOST), 2)
  end
  emit(level, text)
end

package.loaded.json = json
_G.json = json
arg = words
arg[0] = path

-- The message of an uncaught error: what it is, and where, without the frames of the runner itself.
local function uncaught(failure)
  if type(failure) ~= "string" then
    local meta = getmetatable(failure)
    if type(failure) == "table" and not (meta and meta.__tostring) then
      local good, text = pcall(json.encode, failure)
      failure = good and text or tostring(failure)
    else
      failure = tostring(failure)
    end
  end
  local lines = { (failure:gsub("^jsagent:%d+: ", "")) }
  for line in debug.traceback("", 2):gmatch("[^\n]+") do
    -- Below it is the runner, where there is nothing to see.
    if line:find("'xpcall'") then break end
    if not line:find("^%s*jsagent:") and not line:find("^%s*json:") then
      lines[#lines + 1] = line:gsub("in %a+ '?chunk'?$", "in main chunk")
    end
  end
  return table.concat(lines, "\n")
end

local chunk, why = load(source:gsub("^#[^\n]*", ""), label)
if not chunk then
  emit(9, why)
  return false
end
local spread = table.unpack or unpack
local good, failure = xpcall(function() chunk(spread(words)) end, uncaught)
local action = rawget(_G, "action")
if not good or type(action) ~= "function" then
  if not good then emit(9, failure) end
  return good
end

-- A script that defines `action` has it called with the data, and what it returns is the result.
local data, value = io.stdin:read("*a") or "", {}
if data:find("%S") then
  good, value = pcall(json.decode, data)
  if not good then
    emit(9, "the data is no JSON, which action is called with: " .. value)
    return false
  end
  if value == json.null then value = {} end
end
good, failure = xpcall(function()
  local returned = action(value)
  if returned ~= nil then result(returned) end
end, uncaught)
if not good then emit(9, failure) end
return good
