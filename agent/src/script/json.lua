-- JSON in plain Lua (5.1 and later, LuaJIT): the module `json` of every script.
-- Arrays are tables 1..n; an empty table is an object unless json.array made it; null is json.null.
local json = {}

local array = { __name = "json.array" }
json.null = setmetatable({}, { __name = "json.null", __tostring = function() return "null" end })

-- Deeper values than these are refused, so that none can exhaust the stack.
local DEEPEST = 200

--- Marks a table as an array, which matters for an empty one; without a table, makes one.
function json.array(t) return setmetatable(t or {}, array) end

local integer = math.type and function(n) return math.type(n) == "integer" end
  or function(n) return n % 1 == 0 and n > -1e15 and n < 1e15 end

local escapes = {
  ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t",
}
local function escape(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end
local function quote(s) return '"' .. s:gsub('[%c"\\]', escape) .. '"' end

local function number(n)
  if integer(n) then return ("%d"):format(n) end
  if n ~= n or n == math.huge or n == -math.huge then error("JSON has no " .. tostring(n), 0) end
  for digits = 14, 17 do
    local text = ("%." .. digits .. "g"):format(n):gsub(",", ".")
    if digits == 17 or tonumber(text) == n then return text:find("[.e]") and text or text .. ".0" end
  end
end

local encode

local function list(t, n, out, depth)
  out[#out + 1] = "["
  for i = 1, n do
    if i > 1 then out[#out + 1] = "," end
    encode(t[i], out, depth)
  end
  out[#out + 1] = "]"
end

local function object(t, out, depth)
  local keys = {}
  for k in pairs(t) do
    local kind = type(k)
    if kind ~= "string" and kind ~= "number" then error("a " .. kind .. " is no key for JSON", 0) end
    keys[#keys + 1] = k
  end
  -- Sorted, so that the same value is the same text each time.
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  out[#out + 1] = "{"
  for i, k in ipairs(keys) do
    if i > 1 then out[#out + 1] = "," end
    out[#out + 1] = quote(type(k) == "string" and k or number(k)) .. ":"
    encode(t[k], out, depth)
  end
  out[#out + 1] = "}"
end

function encode(v, out, depth)
  local kind = type(v)
  if kind == "table" then
    if v == json.null then
      out[#out + 1] = "null"
      return
    end
    if depth > DEEPEST then error("too deep for JSON, or it holds itself", 0) end
    local count = 0
    for _ in pairs(v) do count = count + 1 end
    if count == #v and (count > 0 or getmetatable(v) == array) then
      list(v, count, out, depth + 1)
    else
      object(v, out, depth + 1)
    end
  elseif kind == "string" then
    out[#out + 1] = quote(v)
  elseif kind == "number" then
    out[#out + 1] = number(v)
  elseif kind == "boolean" then
    out[#out + 1] = tostring(v)
  elseif kind == "nil" then
    out[#out + 1] = "null"
  else
    error("a " .. kind .. " is no value for JSON", 0)
  end
end

--- The JSON text of a value; an error when it has a part that JSON cannot hold.
function json.encode(value)
  local out = {}
  local good, why = pcall(encode, value, out, 1)
  if not good then error(tostring(why), 2) end
  return table.concat(out)
end

local function fault(at, what) error({ at = at, what = what }, 0) end

local function utf8_char(n)
  if n < 0x80 then return string.char(n) end
  if n < 0x800 then return string.char(0xC0 + (n - n % 64) / 64, 0x80 + n % 64) end
  local last, rest = 0x80 + n % 64, (n - n % 64) / 64
  if n < 0x10000 then return string.char(0xE0 + (rest - rest % 64) / 64, 0x80 + rest % 64, last) end
  local third, top = 0x80 + rest % 64, (rest - rest % 64) / 64
  return string.char(0xF0 + (top - top % 64) / 64, 0x80 + top % 64, third, last)
end

local short = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }

local function text(s, at)
  local parts, i = {}, at + 1
  while true do
    local from = i
    i = s:find('[%c"\\]', i)
    if not i then fault(at, "a string is not closed") end
    parts[#parts + 1] = s:sub(from, i - 1)
    local c = s:sub(i, i)
    if c == '"' then return table.concat(parts), i + 1 end
    if c ~= "\\" then
      -- %c holds DEL too, which JSON allows.
      if c ~= "\127" then fault(i, "a control character in a string") end
      parts[#parts + 1], i = c, i + 1
    else
      local e = s:sub(i + 1, i + 1)
      if e == "u" then
        local hex = s:match("^%x%x%x%x", i + 2)
        if not hex then fault(i, "\\u without four digits") end
        local n = tonumber(hex, 16)
        i = i + 6
        if n >= 0xD800 and n < 0xDC00 then
          local low = s:match("^\\u([dD][c-fC-F]%x%x)", i)
          if low then
            n, i = 0x10000 + (n - 0xD800) * 0x400 + tonumber(low, 16) - 0xDC00, i + 6
          end
        end
        -- Half a pair is no character.
        parts[#parts + 1] = utf8_char((n >= 0xD800 and n < 0xE000) and 0xFFFD or n)
      else
        if not short[e] then fault(i, "an unknown escape") end
        parts[#parts + 1], i = short[e], i + 2
      end
    end
  end
end

local words = { t = { "true", true }, f = { "false", false }, n = { "null", json.null } }

local function skip(s, i) return s:find("[^ \t\r\n]", i) or #s + 1 end

local value

local function elements(s, i, depth)
  local t, n = json.array(), 0
  i = skip(s, i + 1)
  if s:sub(i, i) == "]" then return t, i + 1 end
  while true do
    n = n + 1
    t[n], i = value(s, i, depth)
    i = skip(s, i)
    local c = s:sub(i, i)
    if c == "]" then return t, i + 1 end
    if c ~= "," then fault(i, "a ',' or ']' is missing") end
    i = skip(s, i + 1)
  end
end

local function members(s, i, depth)
  local t = {}
  i = skip(s, i + 1)
  if s:sub(i, i) == "}" then return t, i + 1 end
  while true do
    if s:sub(i, i) ~= '"' then fault(i, "a key is missing") end
    local key
    key, i = text(s, i)
    i = skip(s, i)
    if s:sub(i, i) ~= ":" then fault(i, "a ':' is missing") end
    t[key], i = value(s, skip(s, i + 1), depth)
    i = skip(s, i)
    local c = s:sub(i, i)
    if c == "}" then return t, i + 1 end
    if c ~= "," then fault(i, "a ',' or '}' is missing") end
    i = skip(s, i + 1)
  end
end

function value(s, i, depth)
  if depth > DEEPEST then fault(i, "too deep") end
  local c = s:sub(i, i)
  if c == "{" then return members(s, i, depth + 1) end
  if c == "[" then return elements(s, i, depth + 1) end
  if c == '"' then return text(s, i) end
  local word = words[c]
  if word and s:sub(i, i + #word[1] - 1) == word[1] then return word[2], i + #word[1] end
  local whole = s:match("^-?%d+", i)
  if not whole or whole:find("^-?0%d") then fault(i, "a value is missing") end
  local rest = s:match("^%.%d+[eE][+-]?%d+", i + #whole) or s:match("^[eE][+-]?%d+", i + #whole)
    or s:match("^%.%d+", i + #whole) or ""
  local n = tonumber(whole .. rest)
  if not n then fault(i, "a value is missing") end
  return n, i + #whole + #rest
end

--- The value of a JSON text; an error that says where it is none.
function json.decode(s)
  if type(s) ~= "string" then error("a string is needed, not a " .. type(s), 2) end
  local good, result, i = pcall(value, s, skip(s, 1), 1)
  if good then
    i = skip(s, i)
    if i <= #s then
      good, result = false, { at = i, what = "something follows the value" }
    end
  end
  if good then return result end
  if type(result) ~= "table" then error(result, 0) end
  error(("%s at byte %d"):format(result.what, result.at), 2)
end

return json
